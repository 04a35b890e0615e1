defmodule Counter.Routes do
  @moduledoc """
  Answers one request with `{status, content type, body}`. The routes past
  /increment are for tests: they look at the process, load it, or end it.
  """

  # Its process ignores what a polite supervisor does first: SIGTERM, and the
  # end of its input. A port program has a session of its own already, so that
  # a kill of the release's process group misses it too.
  @stubborn ~S(trap "" TERM HUP; echo deaf; exec sleep 600)

  def call(method, _target) when method not in ["GET", "POST"], do: text(405, "")

  def call(method, target) do
    %URI{path: path, query: query} = URI.parse(target)
    route(method, path, URI.decode_query(query || ""))
  rescue
    # A malformed escape, a number that is none, a name no variable can have.
    _error in [ArgumentError, URI.Error] -> text(400, "bad request\n")
  end

  defp route("GET", "/", _params), do: status(Counter.Server.value())

  defp route(_method, "/increment", _params), do: status(Counter.Server.increment())

  defp route("GET", "/env", %{"name" => name}) do
    case System.get_env(name) do
      nil -> text(404, "")
      value -> text(200, value)
    end
  end

  defp route("GET", "/crash", _params), do: System.halt(1)

  defp route("GET", "/halt", _params), do: System.halt(0)

  defp route("GET", "/leave", _params) do
    port = Port.open({:spawn_executable, "/bin/sh"}, args: ["-c", @stubborn])
    {:os_pid, os_pid} = Port.info(port, :os_pid)

    # Not before it ignores the signal.
    receive do
      {^port, {:data, _deaf}} -> text(200, Integer.to_string(os_pid))
    end
  end

  # A process in Counter.Server's code that no hot upgrade brings to the new one.
  defp route("GET", "/linger", _params) do
    {:ok, pid} = Task.Supervisor.start_child(Counter.Connections, Counter.Server, :linger, [])
    Process.register(pid, Counter.Lingering)
    text(200, inspect(pid))
  end

  defp route("GET", "/lingering", _params),
    do: text(200, if(Process.whereis(Counter.Lingering), do: "yes", else: "no"))

  # Whether the protocol knows a float is what one of the upgrades changes.
  defp route("GET", "/describe", _params) do
    text(200, Counter.Describe.describe(Application.get_env(:counter, :described, 1.5)))
  rescue
    error in Protocol.UndefinedError -> text(501, Exception.message(error))
  end

  defp route("GET", "/log", params) do
    text = Map.get(params, "text", "log line")
    lines = params |> Map.get("n", "1") |> String.to_integer()
    if lines > 0, do: IO.write(Enum.map(1..lines, &"#{text} #{&1}\n"))
    text(200, "ok")
  end

  defp route("GET", "/stderr", params) do
    IO.puts(:stderr, Map.get(params, "text", "error line"))
    text(200, "ok")
  end

  defp route(_method, _path, _params), do: text(404, "not found\n")

  # The configuration is read anew each time, so that the answer shows what a
  # hot upgrade made of it; the port is the configured one, not the open one.
  defp status(server) do
    fields =
      [
        version: to_string(Application.spec(:counter, :vsn)),
        counter: server[:counter],
        os_pid: System.pid(),
        node: Atom.to_string(node()),
        greeting: Application.get_env(:counter, :greeting),
        only_runtime: Application.get_env(:counter, :only_runtime),
        port: Application.get_env(:counter, :port),
        configured_by: Application.get_env(:counter, :configured_by),
        phrase: Phrase.of(server[:counter]),
        shouted: shouted(Application.get_env(:counter, :shout))
      ] ++ Keyword.delete(server, :counter)

    {200, "application/json", [json(fields), "\n"]}
  end

  defp shouted(nil), do: nil
  defp shouted(shout), do: shout.("hello")

  defp text(status, body), do: {status, "text/plain; charset=utf-8", body}

  defp json(fields) when is_list(fields) do
    members =
      Enum.map(fields, fn {key, value} -> [json(Atom.to_string(key)), ": ", json(value)] end)

    ["{", Enum.intersperse(members, ", "), "}"]
  end

  defp json(nil), do: "null"
  defp json(number) when is_integer(number), do: Integer.to_string(number)

  # Escapes byte by byte, which leaves the bytes of a UTF-8 character alone.
  defp json(string) when is_binary(string) do
    escaped =
      for <<byte <- string>>, into: "" do
        if byte < 0x20 or byte in [?", ?\\],
          do: "\\u00" <> Base.encode16(<<byte>>),
          else: <<byte>>
      end

    [?", escaped, ?"]
  end
end
