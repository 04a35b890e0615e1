defmodule Counter.Application do
  @moduledoc "Starts the counter and its HTTP endpoint, or fails in the way it was built to fail."
  use Application

  @impl true
  def start(_type, _args) do
    children =
      [
        Counter.Server,
        {Task.Supervisor, name: Counter.Connections},
        Counter.Endpoint
      ] ++ misbehave(Application.fetch_env!(:counter, :behaviour))

    Supervisor.start_link(children, strategy: :rest_for_one, name: Counter.Supervisor)
  end

  @impl true
  def prep_stop(state) do
    Counter.Shutdown.prep_stop()
    state
  end

  @impl true
  def stop(_state), do: Counter.Shutdown.stop()

  defp misbehave(:good), do: []
  defp misbehave(:fails_at_boot), do: raise("this version fails at boot, on purpose")

  defp misbehave(:exits_after_2s) do
    exit_later = fn ->
      Process.sleep(2_000)
      IO.puts(:stderr, "this version exits after 2 s, on purpose")
      System.halt(3)
    end

    [{Task, exit_later}]
  end
end
