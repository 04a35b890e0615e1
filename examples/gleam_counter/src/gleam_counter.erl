%% A Gleam program as its compiler would translate it: a module with main/0,
%% which runs for as long as the program does.
-module(gleam_counter).
-behaviour(counter_http).
-export([main/0, status/0, increment/0]).

main() ->
    persistent_term:put(?MODULE, atomics:new(1, [])),
    {ok, _} = counter_http:start_link(#{port => port(), counter => ?MODULE}),
    receive after infinity -> nil end.

status() ->
    describe(atomics:get(persistent_term:get(?MODULE), 1)).

increment() ->
    describe(atomics:add_get(persistent_term:get(?MODULE), 1, 1)).

describe(Counter) ->
    {ok, Version} = application:get_key(gleam_counter, vsn),
    Greeting = unicode:characters_to_binary(os:getenv("COUNTER_GREETING", "hello from runtime")),
    [{version, list_to_binary(Version)},
     {counter, Counter},
     {os_pid, list_to_binary(os:getpid())},
     {node, atom_to_binary(node())},
     {greeting, Greeting},
     {only_runtime, Greeting},
     {port, port()}].

port() ->
    list_to_integer(os:getenv("PORT", "4000")).
