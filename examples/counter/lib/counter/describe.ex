defprotocol Counter.Describe do
  @moduledoc "Consolidated when the release is built; one of the upgrades brings another implementation."
  def describe(term)
end

defimpl Counter.Describe, for: Integer do
  def describe(integer), do: "the integer #{integer}"
end
