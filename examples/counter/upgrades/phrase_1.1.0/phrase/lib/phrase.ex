defmodule Phrase do
  @moduledoc "A library that the counter depends on, with versions and hot upgrades of its own."

  def of(counter), do: "#{counter} counted so far"
end
