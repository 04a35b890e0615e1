defmodule Counter.Shutdown do
  @moduledoc """
  What the callbacks of a graceful stop do. With COUNTER_SHUTDOWN_DIR each
  leaves a file of its name there; COUNTER_SHUTDOWN_LINES lines are logged, and
  as many printed, by the last one; COUNTER_SHUTDOWN_MS is how long terminate
  takes.
  """
  require Logger

  def prep_stop, do: note("prep_stop", "")

  def terminate(counter) do
    Process.sleep(number("COUNTER_SHUTDOWN_MS"))
    note("terminate", "#{counter}")
    IO.puts("counter stopped gracefully at #{counter}")
  end

  def stop do
    lines = number("COUNTER_SHUTDOWN_LINES")
    for line <- 1..lines//1, do: Logger.info("shutdown logged #{line}")
    for line <- 1..lines//1, do: IO.puts("shutdown printed #{line}")
    note("stop", "#{lines}")
  end

  defp note(callback, text) do
    case System.get_env("COUNTER_SHUTDOWN_DIR") do
      nil -> :ok
      folder -> File.write!(Path.join(folder, callback), text)
    end
  end

  defp number(variable), do: System.get_env(variable, "0") |> String.to_integer()
end
