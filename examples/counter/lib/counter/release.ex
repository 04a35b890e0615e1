defmodule Counter.Release do
  @moduledoc """
  What a deployment runs before the new version takes over:

      bin/counter eval 'Counter.Release.migrate("/path/file")'
  """

  @doc "Appends a line, the version and the time, to the file: one line per run."
  def migrate(path) do
    Application.load(:counter)
    version = Application.spec(:counter, :vsn)
    line = "#{version} #{DateTime.to_iso8601(DateTime.utc_now())}\n"
    File.write!(path, line, [:append])
    IO.write("migrated " <> line)
  end

  def fail, do: raise("this command fails, on purpose")

  def sleep(ms) do
    IO.puts("sleeping for #{ms} ms")
    Process.sleep(ms)
  end
end
