defmodule Counter.Server do
  @moduledoc "Keeps the counter. The state is a map, so that a hot upgrade has something to change."
  use GenServer

  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  def value, do: GenServer.call(__MODULE__, :value)

  def increment, do: GenServer.call(__MODULE__, :increment)

  @impl true
  def init([]) do
    # terminate/2 is called on a graceful stop only when exits are trapped.
    Process.flag(:trap_exit, true)
    {:ok, %{counter: 0}}
  end

  @impl true
  def handle_call(:value, _from, state), do: {:reply, state.counter, state}

  def handle_call(:increment, _from, state) do
    state = %{state | counter: state.counter + 1}
    {:reply, state.counter, state}
  end

  @impl true
  def terminate(_reason, state), do: IO.puts("counter stopped gracefully at #{state.counter}")
end
