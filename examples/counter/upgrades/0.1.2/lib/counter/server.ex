defmodule Counter.Server do
  @moduledoc "Keeps the counter, and how often it was incremented since its state has this shape."
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
    {:ok, %{count: 0, increments: 0}}
  end

  @impl true
  def handle_call(:value, _from, state), do: {:reply, answer(state), state}

  def handle_call(:increment, _from, state) do
    state = %{state | count: state.count + 1, increments: state.increments + 1}
    {:reply, answer(state), state}
  end

  defp answer(state), do: [counter: state.count, state: 2, increments: state.increments]

  # Both ways are called in this module: going down, before the old code is loaded.
  @impl true
  def code_change({:down, _vsn}, state, _extra), do: Counter.CodeChange.down(state)
  def code_change(_vsn, state, _extra), do: Counter.CodeChange.up(state)

  @impl true
  def terminate(_reason, state), do: Counter.Shutdown.terminate(state.count)
end
