defmodule Counter.Server do
  @moduledoc "Keeps the counter: a tuple of its value and of how often it was incremented."
  use GenServer

  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "What the counter answers of itself: its value, and which shape the state has."
  def value, do: GenServer.call(__MODULE__, :value)

  def increment, do: GenServer.call(__MODULE__, :increment)

  @doc "Never returns. Whoever is in here when the module changes stays in its old code."
  def linger do
    receive do
      :never -> linger()
    end
  end

  @impl true
  def init([]) do
    # terminate/2 is called on a graceful stop only when exits are trapped.
    Process.flag(:trap_exit, true)
    {:ok, {0, 0}}
  end

  @impl true
  def handle_call(:value, _from, state), do: {:reply, answer(state), state}

  def handle_call(:increment, _from, {count, increments}) do
    state = {count + 1, increments + 1}
    {:reply, answer(state), state}
  end

  defp answer({count, increments}), do: [counter: count, state: 3, increments: increments]

  # Both ways are called in this module: going down, before the old code is loaded.
  @impl true
  def code_change({:down, _vsn}, state, _extra), do: Counter.CodeChange.down(state)
  def code_change(_vsn, state, _extra), do: Counter.CodeChange.up(state)

  @impl true
  def terminate(_reason, {count, _increments}), do: Counter.Shutdown.terminate(count)
end
