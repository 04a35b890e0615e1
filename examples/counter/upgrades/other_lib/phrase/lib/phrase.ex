defmodule Phrase do
  @moduledoc "Changed, under the same version."

  def of(counter), do: "counted to #{counter}"
end
