"""The new version's runtime configuration: resolved on the node, and never seen by us.

install_release sets the applications' environment from the new sys.config, which is what the build
knew: what config providers add at boot (runtime.exs) would be lost. So they are run on the node
before, what they give waits in a persistent_term, and a hook in the relup sets it directly after
point_of_no_return, before any code changes. At the head of the script it would be too early:
check_install_release already evaluates what stands before point_of_no_return.

A rewritten sys.config would not do: it breaks on the first fun in it. (Elixir: Config.Provider.
OTP: relup(4), release_handler(3), config(4).)

The code that runs then is the old version's. So a provider that is new, or another in the new
version, is no failure of that version: it cannot go hot, and nor can one that calls what the old
version has not. (That what a provider calls has changed is not seen.)
"""

from __future__ import annotations

from deployex_cli.errors import NotUpgradable, ProviderFailed
from deployex_cli.otp.node import Node
from deployex_cli.otp.terms import Atom, text

STASH = Atom("deployex_configuration")  # persistent_term; secrets are in it
_PROVIDER_SECONDS = 30.0  # one may ask a secrets' manager


def resolve(node: Node, root: str, version: str) -> None:
    """Folds the version's providers over its sys.config, and stashes what they give.

    The release handler knows the version. Raises ProviderFailed, and NotUpgradable when only the
    new version's own code could resolve it.
    """
    bindings = {"Root": root, "Version": version, "Key": STASH}
    answer = node.evaluate(_RESOLVE, bindings, _PROVIDER_SECONDS)
    if answer == "ok":
        return
    kind, words = answer
    message = f"the runtime configuration of {version}: {text(words)}"
    if kind == "not_hot":
        raise NotUpgradable("relup_not_possible", message)
    raise ProviderFailed(message)


def hook(node: Node, relup: str) -> None:
    """Puts what sets the stash into each script of a relup, up and down."""
    node.evaluate(_HOOK, {"File": relup, "Key": STASH})


def erase(node: Node) -> None:
    """Erases the stash, on every way out."""
    node.call("persistent_term", "erase", [STASH])


# --- Erlang, evaluated on the node --------------------------------------------------------------

# No value of the configuration is in an answer: a provider's error may hold one, so that only its
# class and module are named.
_RESOLVE = r"""
Folder = filename:join([Root, "releases", Version]),
Libraries = [L || {_, V, Ls, _} <- release_handler:which_releases(), V =:= Version, L <- Ls],
Check = fun(Module) ->
    Beams = [Beam || Library <- Libraries, Beam <- [filename:join([Root, "lib", Library, "ebin",
        atom_to_list(Module) ++ ".beam"])], filelib:is_regular(Beam)],
    case code:ensure_loaded(Module) of
        {module, Module} ->
            Runs = Module:module_info(md5),
            Same = lists:all(fun(Beam) -> {ok, {Module, Runs}} =:= beam_lib:md5(Beam) end, Beams),
            Same orelse throw({not_hot, io_lib:format("its provider ~tp is changed", [Module])});
        _ -> throw({not_hot, io_lib:format("its provider ~tp is new", [Module])})
    end
end,
Read = fun(Path) ->
    case file:consult(Path) of
        {ok, [Terms]} when is_list(Terms) -> Terms;
        {error, enoent} -> [];
        _ -> throw({failed, "sys.config cannot be read"})
    end
end,
Value = fun(Inside) ->  % of ${Name} or ${Name:-Default}, the default also where it is empty
    [Name | Default] = string:split(Inside, ":-"),
    case os:getenv(Name, "") of
        "" -> lists:append(Default);
        Found -> Found
    end
end,
Expanded = fun(Path) ->  % what relx's script does at boot
    {ok, Raw} = file:read_file(Path),
    Fill = fun
        Fill([Text, Name | More]) -> [Text, Value(Name) | Fill(More)];
        Fill(Text) -> Text
    end,
    Parts = re:split(Raw, "\\$\\{([A-Za-z_][A-Za-z0-9_]*(?::-[^}\\n]*)?)\\}",
        [unicode, {return, list}]),
    {ok, Tokens, _} = erl_scan:string(lists:append(Fill(Parts))),
    {ok, Terms} = erl_parse:parse_term(Tokens),
    Terms
end,
Valid = fun(Config) ->
    is_list(Config) andalso
    lists:all(fun({App, Pairs}) when is_atom(App), is_list(Pairs) ->
            lists:all(fun({Name, _}) when is_atom(Name) -> true; (_) -> false end, Pairs);
        (_) -> false end, Config)
end,
Last = fun(Pairs) ->  % application:set_env/2 refuses a name that comes twice
    maps:to_list(maps:from_list(Pairs))
end,
try
    Source = filename:join(Folder, "sys.config.src"),
    Config = case filelib:is_regular(Source) of
        true -> Expanded(Source);
        false -> Read(filename:join(Folder, "sys.config"))
    end,
    Elixir = proplists:get_value(elixir, Config, []),
    Providers = case proplists:get_value(config_provider_init, Elixir) of
        #{providers := List} -> List;
        _ -> []
    end,
    Load = fun({Module, Argument}, Before) ->
        Check(Module),
        Failed = fun(Kind, What) ->
            throw({Kind, io_lib:format("~tp:load/2 ended in ~tp", [Module, What])})
        end,
        After = try Module:load(Before, Argument)
        catch
            error:undef -> Failed(not_hot, undef);
            error:#{'__struct__' := 'Elixir.UndefinedFunctionError'} -> Failed(not_hot, undef);
            Class:_ -> Failed(failed, Class)
        end,
        case Valid(After) of
            true -> After;
            false -> throw({failed, io_lib:format("~tp:load/2 gave no configuration", [Module])})
        end
    end,
    Resolved = lists:foldl(Load, Config, Providers),
    case Valid(Resolved) of
        true -> ok;
        false -> throw({failed, "sys.config is no list of applications"})
    end,
    Whole = [{App, Last([Pair || {A, Pairs} <- Resolved, A =:= App, Pair <- Pairs])}
        || App <- lists:usort([A || {A, _} <- Resolved])],
    Kept = [{App, lists:keydelete(config_provider_init, 1, Pairs)} || {App, Pairs} <- Whole],
    persistent_term:put(Key, Kept),
    ok
catch
    throw:{Kind, Words} -> {Kind, lists:flatten(Words)};
    Class:_ -> {failed, lists:flatten(io_lib:format("it cannot be resolved (~tp)", [Class]))}
end.
"""

_HOOK = r"""
Source = lists:flatten(io_lib:format(
    "application:set_env(persistent_term:get(~tp, []), [{persistent, true}]),"
    " persistent_term:erase(~tp).", [Key, Key])),
{ok, Tokens, _} = erl_scan:string(Source),
{ok, Forms} = erl_parse:parse_exprs(Tokens),
Apply = {apply, {erl_eval, exprs, [Forms, []]}},
Hooked = fun
    ([restart_new_emulator | _] = Script) -> Script;
    (Script) -> lists:append([case Instruction of
        point_of_no_return -> [Instruction, Apply];
        Apply -> [];
        _ -> [Instruction]
    end || Instruction <- Script])
end,
All = fun(Ways) -> [{Vsn, Text, Hooked(Script)} || {Vsn, Text, Script} <- Ways] end,
{ok, [{Version, Ups, Downs}]} = file:consult(File),
Term = io_lib:format("%% coding: utf-8~n~tp.~n", [{Version, All(Ups), All(Downs)}]),
ok = file:write_file(File, unicode:characters_to_binary(Term)).
"""
