defmodule Counter.Endpoint do
  @moduledoc """
  A small HTTP/1.1 server. The GenServer owns the listening socket, a linked
  process accepts, and each connection has a process of its own.
  """
  use GenServer

  # How long a client may be silent, and how long an accept waits (ms).
  @idle_timeout 30_000
  @accept_timeout 200
  @max_body 1_000_000

  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  # Listening in init makes a port in use a failed boot.
  @impl true
  def init([]) do
    ip = Application.get_env(:counter, :ip, {127, 0, 0, 1})
    port = Application.fetch_env!(:counter, :port)

    # packet: :http_bin lets the VM parse the request line and the headers.
    options = [
      :binary,
      packet: :http_bin,
      active: false,
      ip: ip,
      reuseaddr: true,
      nodelay: true,
      backlog: 1024,
      send_timeout: @idle_timeout
    ]

    case :gen_tcp.listen(port, options) do
      {:ok, listener} ->
        spawn_link(__MODULE__, :accept, [listener])
        {:ok, listener}

      {:error, reason} ->
        {:stop, {:listen, ip, port, reason}}
    end
  end

  # Comes back to the newest code every @accept_timeout ms: a process that
  # stays in old code is killed when a hot upgrade purges it.
  @doc false
  def accept(listener) do
    case :gen_tcp.accept(listener, @accept_timeout) do
      {:ok, socket} -> hand_over(socket)
      {:error, :timeout} -> :ok
      {:error, reason} when reason in [:emfile, :enfile] -> Process.sleep(@accept_timeout)
      {:error, :econnaborted} -> :ok
      {:error, reason} -> exit({:accept, reason})
    end

    __MODULE__.accept(listener)
  end

  defp hand_over(socket) do
    {:ok, pid} =
      Task.Supervisor.start_child(Counter.Connections, fn ->
        receive do
          :go -> serve(socket)
        end
      end)

    # The client may be gone already; then the connection's first read says so.
    _ = :gen_tcp.controlling_process(socket, pid)
    send(pid, :go)
  end

  # One request after another, until either side wants to close.
  defp serve(socket) do
    with {:ok, method, target, version} <- read_request_line(socket),
         {:ok, headers} <- read_headers(socket, %{}),
         :ok <- skip_body(socket, headers) do
      keep? = keep_alive?(version, headers["connection"])
      respond(socket, Counter.Routes.call(method, target), keep?)
      if keep?, do: serve(socket), else: :gen_tcp.close(socket)
    else
      {:refuse, status} ->
        respond(socket, {status, "text/plain", ""}, false)
        :gen_tcp.close(socket)

      {:error, _closed_or_silent} ->
        :gen_tcp.close(socket)
    end
  end

  defp read_request_line(socket) do
    case :gen_tcp.recv(socket, 0, @idle_timeout) do
      {:ok, {:http_request, method, {:abs_path, target}, version}} ->
        {:ok, to_string(method), target, version}

      {:ok, _other} ->
        {:refuse, 400}

      {:error, reason} ->
        {:error, reason}
    end
  end

  defp read_headers(_socket, headers) when map_size(headers) > 100, do: {:refuse, 431}

  defp read_headers(socket, headers) do
    case :gen_tcp.recv(socket, 0, @idle_timeout) do
      {:ok, {:http_header, _, name, _, value}} ->
        read_headers(socket, Map.put(headers, String.downcase(to_string(name)), value))

      {:ok, :http_eoh} ->
        {:ok, headers}

      {:ok, _other} ->
        {:refuse, 400}

      {:error, reason} ->
        {:error, reason}
    end
  end

  # No route wants a body, but the next request begins behind it.
  defp skip_body(_socket, %{"transfer-encoding" => _}), do: {:refuse, 411}

  defp skip_body(socket, %{"content-length" => length}) do
    case Integer.parse(length) do
      {0, ""} -> :ok
      {n, ""} when n in 1..@max_body -> skip_bytes(socket, n)
      {n, ""} when n > @max_body -> {:refuse, 413}
      _ -> {:refuse, 400}
    end
  end

  defp skip_body(_socket, _headers), do: :ok

  defp skip_bytes(socket, n) do
    with :ok <- :inet.setopts(socket, packet: :raw),
         {:ok, _body} <- :gen_tcp.recv(socket, n, @idle_timeout) do
      :inet.setopts(socket, packet: :http_bin)
    end
  end

  defp keep_alive?(version, connection) do
    case {version, String.downcase(connection || "")} do
      {{1, 1}, "close"} -> false
      {{1, 1}, _} -> true
      {{1, 0}, "keep-alive"} -> true
      _ -> false
    end
  end

  # The result does not matter: a client that is gone shows at the next read.
  defp respond(socket, {status, type, body}, keep?) do
    :gen_tcp.send(socket, [
      "HTTP/1.1 #{status} #{reason(status)}\r\n",
      "content-type: #{type}\r\n",
      "content-length: #{IO.iodata_length(body)}\r\n",
      "connection: #{if keep?, do: "keep-alive", else: "close"}\r\n\r\n",
      body
    ])
  end

  defp reason(200), do: "OK"
  defp reason(400), do: "Bad Request"
  defp reason(404), do: "Not Found"
  defp reason(405), do: "Method Not Allowed"
  defp reason(411), do: "Length Required"
  defp reason(413), do: "Content Too Large"
  defp reason(431), do: "Request Header Fields Too Large"
  defp reason(501), do: "Not Implemented"
end
