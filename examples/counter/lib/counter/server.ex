defmodule Counter.Server do
  @moduledoc """
  Keeps the counter. Its state takes another shape in 0.1.2, and again in 0.1.3
  (upgrades/), so that a hot upgrade has something to change.
  """
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
    {:ok, %{counter: 0}}
  end

  @impl true
  def handle_call(:value, _from, state), do: {:reply, answer(state), state}

  def handle_call(:increment, _from, state) do
    state = %{state | counter: state.counter + 1}
    {:reply, answer(state), state}
  end

  defp answer(state), do: [counter: state.counter, state: 1]

  @impl true
  def terminate(_reason, state), do: Counter.Shutdown.terminate(state.counter)
end
