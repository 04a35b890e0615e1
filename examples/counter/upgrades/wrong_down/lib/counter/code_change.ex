defmodule Counter.CodeChange do
  @moduledoc """
  From 0.1.1 to 0.1.2. The way back says ok and leaves a state that 0.1.1 does
  not know: the server crashes at its next request, and starts again at 0.
  """

  def up(%{counter: counter}), do: {:ok, %{count: counter, increments: 0}}

  def down(state), do: {:ok, state}
end
