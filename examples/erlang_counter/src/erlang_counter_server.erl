%% Keeps the counter. Its state takes another shape in 0.1.2, and again in 0.1.3
%% (upgrades/), so that a hot upgrade has something to change.
-module(erlang_counter_server).
-behaviour(gen_server).
-behaviour(counter_http).

-export([start_link/0, status/0, increment/0]).
-export([init/1, handle_call/3, handle_cast/2, terminate/2]).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

status() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, value)).

increment() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, increment)).

init([]) ->
    %% terminate/2 is called on a graceful stop only when exits are trapped.
    process_flag(trap_exit, true),
    {ok, #{counter => 0}}.

handle_call(value, _From, State) ->
    {reply, answer(State), State};
handle_call(increment, _From, #{counter := Counter}) ->
    State = #{counter => Counter + 1},
    {reply, answer(State), State}.

answer(#{counter := Counter}) ->
    [{counter, Counter}, {state, 1}].

handle_cast(_Message, State) ->
    {noreply, State}.

terminate(_Reason, #{counter := Counter}) ->
    erlang_counter_shutdown:terminate(Counter).
