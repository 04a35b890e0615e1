defmodule Counter.CodeChange do
  @moduledoc """
  From 0.1.1 to 0.1.2. The way back says ok and leaves timers whose messages
  0.1.1 does not know: the server crashes until its supervisor gives up, and the
  VM ends, within half a second.
  """

  def up(%{counter: counter}), do: {:ok, %{count: counter, increments: 0}}

  def down(%{count: count}) do
    for n <- 1..20, do: Process.send_after(Counter.Server, {:"$gen_cast", :tick}, 100 + n * 20)
    {:ok, %{counter: count}}
  end
end
