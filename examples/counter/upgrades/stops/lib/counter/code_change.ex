defmodule Counter.CodeChange do
  @moduledoc """
  From 0.1.1 to 0.1.2, whose application then stops while the VM goes on. Going
  back leaves it stopped.
  """

  def up(%{counter: counter}) do
    spawn(fn ->
      Process.sleep(300)
      Application.stop(:counter)
    end)

    {:ok, %{count: counter, increments: 0}}
  end

  def down(%{count: count}), do: {:ok, %{counter: count}}
end
