defmodule Counter.CodeChange do
  @moduledoc "The state of Counter.Server from 0.1.1 to 0.1.2 and back."

  def up(%{counter: counter}), do: {:ok, %{count: counter, increments: 0}}

  def down(%{count: count}), do: {:ok, %{counter: count}}
end
