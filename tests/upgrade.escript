#!/usr/bin/env escript
%% upgrade.escript NODE COOKIE APP TO: takes a running node to another version with plain calls of
%% release_handler, as a person would; upgrade.escript NODE COOKIE APP relup TO makes the relup only.
%% It knows nothing of Deployex: what it shows is a property of the packages. Both versions' files
%% are in the node's folder already. Prints what it came to, as one Erlang term, and exits with 0,
%% or with 1 when that is no {ok, ...}. Options after TO: no_config leaves the runtime configuration
%% out, permanent makes the version permanent at the end, only_permanent does nothing but that.
-mode(compile).

main([Name, Cookie, App, "relup", To]) ->
    finish(relup(connect(Name, Cookie), App, To));
main([Name, Cookie, _App, To, "only_permanent"]) ->
    Node = connect(Name, Cookie),
    finish({rpc(Node, release_handler, make_permanent, [To]), permanent});
main([Name, Cookie, App, To | Options]) ->
    Node = connect(Name, Cookie),
    finish(upgrade(Node, App, To, Options)).

finish(Outcome) ->
    io:format("~0tp~n", [Outcome]),
    halt(case element(1, Outcome) of ok -> 0; _ -> 1 end).

connect(Name, Cookie) ->
    Node = list_to_atom(Name),
    {ok, _} = net_kernel:start([undefined, shortnames]),
    true = erlang:set_cookie(Node, list_to_atom(Cookie)),
    true = net_kernel:connect_node(Node),
    Node.

upgrade(Node, App, To, Options) ->
    try
        case down_again(Node, To) of
            true -> ok;
            false ->
                {ok, _} = stage(Node, App, To),
                ok = element(1, relup(Node, App, To)),
                {ok, _, _} = rpc(Node, release_handler, check_install_release, [To])
        end,
        lists:member("no_config", Options) orelse configure(Node, To),
        Installed = rpc(Node, release_handler, install_release,
                        [To, [{update_paths, true}, {error_action, reboot}]]),
        case {Installed, lists:member("permanent", Options)} of
            {{ok, _, _}, true} -> ok = rpc(Node, release_handler, make_permanent, [To]);
            _ -> ok
        end,
        Installed
    catch
        error:{badmatch, Reason} -> Reason
    end.

%% The script down to a version that ran before is in the relup of the one that runs.
down_again(Node, To) ->
    States = [State || {_, Version, _, State} <- releases(Node), Version =:= To],
    lists:member(States, [[old], [permanent]]).

releases(Node) -> rpc(Node, release_handler, which_releases, []).

current(Node) ->
    Releases = releases(Node),
    hd([Version || State <- [current, permanent], {_, Version, _, S} <- Releases, S =:= State]).

stage(Node, App, To) ->
    File = filename:join([root(Node), "releases", To, App ++ ".rel"]),
    rpc(Node, release_handler, set_unpacked, [File, []]).

relup(Node, App, To) ->
    Root = root(Node),
    Rel = fun(Version) -> Root ++ "/releases/" ++ App ++ "-" ++ Version end,
    From = current(Node),
    Options = [silent, {path, [Root ++ "/lib/*/ebin"]}, {outdir, Root ++ "/releases/" ++ To}],
    case rpc(Node, systools, make_relup, [Rel(To), [Rel(From)], [Rel(From)], Options]) of
        {ok, Relup, _, Warnings} -> {ok, Relup, Warnings};
        {error, Module, Reason} -> {error, lists:flatten(Module:format_error(Reason))}
    end.

%% The providers' configuration, resolved on the node and applied after the point of no return.
configure(Node, To) ->
    Root = root(Node),
    {ok, [SysConfig]} = rpc(Node, file, consult, [Root ++ "/releases/" ++ To ++ "/sys.config"]),
    Elixir = proplists:get_value(elixir, SysConfig, []),
    case proplists:get_value(config_provider_init, Elixir) of
        undefined -> ok;
        #{providers := Providers} -> resolve(Node, SysConfig, Providers), hook(Node, To)
    end.

resolve(Node, SysConfig, Providers) ->
    Code = "Resolved = lists:foldl(fun({Module, Argument}, Config) ->"
           "    case Module:load(Config, Argument) of"
           "        List when is_list(List) -> List;"
           "        Other -> erlang:error({no_list, Module, Other})"
           "    end end, SysConfig, Providers),"
           "persistent_term:put(upgrade_escript, Resolved).",
    {value, ok, _} = evaluate(Node, Code, [{'SysConfig', SysConfig}, {'Providers', Providers}]).

hook(Node, To) ->
    Apply = {apply, {erl_eval, exprs, [parsed(
        "application:set_env(persistent_term:get(upgrade_escript), [{persistent, true}])."), []]}},
    From = current(Node),
    [spliced(Node, Version, Apply) || Version <- lists:usort([From, To])].

%% Each script gets the call once, however often it was looked at.
spliced(Node, Version, Apply) ->
    File = root(Node) ++ "/releases/" ++ Version ++ "/relup",
    case rpc(Node, file, consult, [File]) of
        {ok, [{V, Up, Down}]} ->
            Splice = fun({Other, Description, Script}) ->
                {Before, [point_of_no_return | After]} =
                    lists:splitwith(fun(I) -> I =/= point_of_no_return end, Script -- [Apply]),
                {Other, Description, Before ++ [point_of_no_return, Apply | After]}
            end,
            Relup = {V, lists:map(Splice, Up), lists:map(Splice, Down)},
            ok = rpc(Node, file, write_file, [File, io_lib:format("~tp.~n", [Relup])]);
        {error, enoent} ->
            ok
    end.

evaluate(Node, Code, Bindings) ->
    rpc(Node, erl_eval, exprs, [parsed(Code), Bindings]).

parsed(Code) ->
    {ok, Tokens, _} = erl_scan:string(Code),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    Forms.

root(Node) -> rpc(Node, code, root_dir, []).

rpc(Node, Module, Function, Arguments) -> rpc:call(Node, Module, Function, Arguments, 30000).
