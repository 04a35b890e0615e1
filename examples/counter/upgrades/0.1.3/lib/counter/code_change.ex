defmodule Counter.CodeChange do
  @moduledoc "The state of Counter.Server from 0.1.2 to 0.1.3 and back."

  def up(%{count: count, increments: increments}), do: {:ok, {count, increments}}

  def down({count, increments}), do: {:ok, %{count: count, increments: increments}}
end
