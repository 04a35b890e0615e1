%% Keeps the counter: a tuple of its value and of how often it was incremented.
-module(erlang_counter_server).
-behaviour(gen_server).
-behaviour(counter_http).

-export([start_link/0, status/0, increment/0]).
-export([init/1, handle_call/3, handle_cast/2, code_change/3, terminate/2]).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

status() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, value)).

increment() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, increment)).

init([]) ->
    %% terminate/2 is called on a graceful stop only when exits are trapped.
    process_flag(trap_exit, true),
    {ok, {0, 0}}.

handle_call(value, _From, State) ->
    {reply, answer(State), State};
handle_call(increment, _From, {Count, Increments}) ->
    State = {Count + 1, Increments + 1},
    {reply, answer(State), State}.

answer({Count, Increments}) ->
    [{counter, Count}, {state, 3}, {increments, Increments}].

handle_cast(_Message, State) ->
    {noreply, State}.

%% Both ways are called in this module: going down, before the old code is loaded.
code_change({down, _Vsn}, {Count, Increments}, _Extra) ->
    {ok, #{count => Count, increments => Increments}};
code_change(_Vsn, #{count := Count, increments := Increments}, _Extra) ->
    {ok, {Count, Increments}}.

terminate(_Reason, {Count, _Increments}) ->
    erlang_counter_shutdown:terminate(Count).
