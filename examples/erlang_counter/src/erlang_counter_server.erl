%% Keeps the counter. The state is a map, so that a hot upgrade has something
%% to change.
-module(erlang_counter_server).
-behaviour(gen_server).
-behaviour(counter_http).

-export([start_link/0, status/0, increment/0]).
-export([init/1, handle_call/3, handle_cast/2, terminate/2]).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

status() ->
    describe(gen_server:call(?MODULE, value)).

increment() ->
    describe(gen_server:call(?MODULE, increment)).

init([]) ->
    %% terminate/2 is called on a graceful stop only when exits are trapped.
    process_flag(trap_exit, true),
    {ok, #{counter => 0}}.

handle_call(value, _From, #{counter := Counter} = State) ->
    {reply, Counter, State};
handle_call(increment, _From, #{counter := Counter} = State) ->
    {reply, Counter + 1, State#{counter := Counter + 1}}.

handle_cast(_Message, State) ->
    {noreply, State}.

terminate(_Reason, #{counter := Counter}) ->
    io:format("counter stopped gracefully at ~b~n", [Counter]).

%% The configuration is read anew each time, so that the answer shows what a
%% hot upgrade made of it; the port is the configured one, not the open one.
describe(Counter) ->
    {ok, Version} = application:get_key(erlang_counter, vsn),
    [{version, list_to_binary(Version)},
     {counter, Counter},
     {os_pid, list_to_binary(os:getpid())},
     {node, atom_to_binary(node())},
     {greeting, text(greeting)},
     {only_runtime, text(only_runtime)},
     {port, application:get_env(erlang_counter, port, undefined)}].

text(Key) ->
    case application:get_env(erlang_counter, Key) of
        {ok, String} -> unicode:characters_to_binary(String);
        undefined -> undefined
    end.
