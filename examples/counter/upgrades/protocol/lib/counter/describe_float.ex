defimpl Counter.Describe, for: Float do
  def describe(float), do: "the float #{float}"
end
