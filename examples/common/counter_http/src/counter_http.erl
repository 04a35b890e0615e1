%% A small HTTP/1.1 server in front of a counter. The gen_server owns the
%% listening socket, a linked process accepts, and each connection has a
%% process of its own.
-module(counter_http).
-behaviour(gen_server).

-export([start_link/1, accept/2, default_ip/0]).
-export([init/1, handle_call/3, handle_cast/2]).

%% What the counter answers, as the members of one JSON object, in order.
-type status() :: [{atom(), binary() | integer() | undefined}].
-callback status() -> status().
-callback increment() -> status().

%% How long a client may be silent, and how long an accept waits (ms).
-define(IDLE_TIMEOUT, 30000).
-define(ACCEPT_TIMEOUT, 200).
-define(MAX_BODY, 1000000).

-spec start_link(#{port := inet:port_number(), counter := module()}) ->
    {ok, pid()} | {error, term()}.
start_link(Options) ->
    gen_server:start_link(?MODULE, Options, []).

%% COUNTER_IP, or else the loopback interface.
default_ip() ->
    {ok, Ip} = inet:parse_address(os:getenv("COUNTER_IP", "127.0.0.1")),
    Ip.

%% Listening in init makes a port in use a failed boot.
init(#{port := Port, counter := Counter}) ->
    %% {packet, http_bin} lets the VM parse the request line and the headers.
    Options = [binary, {packet, http_bin}, {active, false}, {ip, default_ip()},
               {reuseaddr, true}, {nodelay, true}, {backlog, 1024},
               {send_timeout, ?IDLE_TIMEOUT}],
    case gen_tcp:listen(Port, Options) of
        {ok, Listener} ->
            spawn_link(?MODULE, accept, [Listener, Counter]),
            {ok, Listener};
        {error, Reason} ->
            {stop, {listen, Port, Reason}}
    end.

handle_call(_Request, _From, State) -> {reply, {error, unknown}, State}.

handle_cast(_Message, State) -> {noreply, State}.

%% Comes back to the newest code every ?ACCEPT_TIMEOUT ms: a process that stays
%% in old code is killed when a hot upgrade purges it.
accept(Listener, Counter) ->
    case gen_tcp:accept(Listener, ?ACCEPT_TIMEOUT) of
        {ok, Socket} -> hand_over(Socket, Counter);
        {error, timeout} -> ok;
        {error, econnaborted} -> ok;
        {error, Full} when Full =:= emfile; Full =:= enfile -> timer:sleep(?ACCEPT_TIMEOUT);
        {error, Reason} -> exit({accept, Reason})
    end,
    ?MODULE:accept(Listener, Counter).

hand_over(Socket, Counter) ->
    Pid = spawn(fun() -> receive go -> serve(Socket, Counter) end end),
    %% The client may be gone already; then the first read says so.
    _ = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go.

%% One request after another, until either side wants to close.
serve(Socket, Counter) ->
    case read_request(Socket) of
        {ok, Method, Path, KeepAlive} ->
            respond(Socket, route(Method, Path, Counter), KeepAlive),
            case KeepAlive of
                true -> serve(Socket, Counter);
                false -> gen_tcp:close(Socket)
            end;
        {refuse, Status} ->
            respond(Socket, {Status, "text/plain", ""}, false),
            gen_tcp:close(Socket);
        {error, _ClosedOrSilent} ->
            gen_tcp:close(Socket)
    end.

route(Method, _Path, _Counter) when Method =/= 'GET', Method =/= 'POST' ->
    {405, "text/plain", ""};
route('GET', <<"/">>, Counter) ->
    {200, "application/json", json(Counter:status())};
route(_Method, <<"/increment">>, Counter) ->
    {200, "application/json", json(Counter:increment())};
route('GET', <<"/crash">>, _Counter) ->
    halt(1);
route('GET', <<"/halt">>, _Counter) ->
    halt(0);
route(_Method, _Path, _Counter) ->
    {404, "text/plain", "not found\n"}.

read_request(Socket) ->
    case gen_tcp:recv(Socket, 0, ?IDLE_TIMEOUT) of
        {ok, {http_request, Method, {abs_path, Target}, Version}} ->
            [Path | _Query] = binary:split(Target, <<"?">>),
            case read_headers(Socket, #{}) of
                {ok, Headers} ->
                    case skip_body(Socket, Headers) of
                        ok -> {ok, Method, Path, keep_alive(Version, Headers)};
                        Other -> Other
                    end;
                Other ->
                    Other
            end;
        {ok, _Other} ->
            {refuse, 400};
        {error, Reason} ->
            {error, Reason}
    end.

read_headers(_Socket, Headers) when map_size(Headers) > 100 ->
    {refuse, 431};
read_headers(Socket, Headers) ->
    case gen_tcp:recv(Socket, 0, ?IDLE_TIMEOUT) of
        %% A name the VM knows comes as an atom: 'Content-Length'.
        {ok, {http_header, _, Name, _, Value}} -> read_headers(Socket, Headers#{Name => Value});
        {ok, http_eoh} -> {ok, Headers};
        {ok, _Other} -> {refuse, 400};
        {error, Reason} -> {error, Reason}
    end.

%% No route wants a body, but the next request begins behind it.
skip_body(_Socket, #{'Transfer-Encoding' := _}) ->
    {refuse, 411};
skip_body(Socket, #{'Content-Length' := Length}) ->
    case string:to_integer(Length) of
        {0, <<>>} -> ok;
        {N, <<>>} when N > 0, N =< ?MAX_BODY -> skip_bytes(Socket, N);
        {N, <<>>} when N > ?MAX_BODY -> {refuse, 413};
        _ -> {refuse, 400}
    end;
skip_body(_Socket, _Headers) ->
    ok.

skip_bytes(Socket, N) ->
    ok = inet:setopts(Socket, [{packet, raw}]),
    case gen_tcp:recv(Socket, N, ?IDLE_TIMEOUT) of
        {ok, _Body} -> inet:setopts(Socket, [{packet, http_bin}]);
        {error, Reason} -> {error, Reason}
    end.

keep_alive(Version, Headers) ->
    case {Version, string:lowercase(maps:get('Connection', Headers, <<>>))} of
        {{1, 1}, <<"close">>} -> false;
        {{1, 1}, _} -> true;
        {{1, 0}, <<"keep-alive">>} -> true;
        _ -> false
    end.

%% The result does not matter: a client that is gone shows at the next read.
respond(Socket, {Status, Type, Body}, KeepAlive) ->
    Connection = case KeepAlive of true -> "keep-alive"; false -> "close" end,
    gen_tcp:send(Socket,
                 io_lib:format("HTTP/1.1 ~b ~s\r\n"
                               "content-type: ~s\r\n"
                               "content-length: ~b\r\n"
                               "connection: ~s\r\n\r\n~s",
                               [Status, reason(Status), Type, iolist_size(Body), Connection, Body])).

reason(200) -> "OK";
reason(400) -> "Bad Request";
reason(404) -> "Not Found";
reason(405) -> "Method Not Allowed";
reason(411) -> "Length Required";
reason(413) -> "Content Too Large";
reason(431) -> "Request Header Fields Too Large".

json(Members) ->
    Encoded = [[string(atom_to_binary(Key)), ": ", value(Value)] || {Key, Value} <- Members],
    ["{", lists:join(", ", Encoded), "}\n"].

value(undefined) -> "null";
value(Number) when is_integer(Number) -> integer_to_list(Number);
value(String) when is_binary(String) -> string(String).

%% Escapes byte by byte, which leaves the bytes of a UTF-8 character alone.
string(Bytes) ->
    [$", [escape(Byte) || <<Byte>> <= Bytes], $"].

escape(Byte) when Byte < 16#20; Byte =:= $"; Byte =:= $\\ -> io_lib:format("\\u~4.16.0b", [Byte]);
escape(Byte) -> Byte.
