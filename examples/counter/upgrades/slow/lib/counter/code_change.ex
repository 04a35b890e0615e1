defmodule Counter.CodeChange do
  @moduledoc "From 0.1.1 to 0.1.2 and back, each in 3 s: time for a connection to be lost."

  def up(%{counter: counter}) do
    Process.sleep(3_000)
    {:ok, %{count: counter, increments: 0}}
  end

  def down(%{count: count}) do
    Process.sleep(3_000)
    {:ok, %{counter: count}}
  end
end
