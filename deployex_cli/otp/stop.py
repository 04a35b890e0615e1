"""Ends a node as init:stop/0 does, without the second that OTP's `user` process takes for it.

init:stop/0 stops the applications, the last started first, then kernel and with it `user`, which
is given 1 s to end and does not (OTP 25 to 28). Here the applications are stopped in the same
order, then what still has files open or lines to write, and the VM is halted.

Where more hangs on an ordinary stop than that, the node is left as it is, and says so: `heart`
would start a halted VM again; an app may have put a handler of its own beside OTP's for SIGTERM;
kernel's shutdown_func and shutdown_timeout, and -shutdown_time, are for init:stop/0 alone.
"""

from __future__ import annotations

from deployex_cli.otp.identity import Target
from deployex_cli.otp.node import connect

# A VM whose inner status is `stopping` may also be one that begins anew, init:restart/0.
# erl_signal_handler is OTP's own, prim_tty_sighandler too (from OTP 28, for the window's size).
# It begins once the call is over, so that the answer is out; whoever asks again finds it by its
# name. kernel_safe_sup has dets and disk_log, which close here what their dead owners left open.
# A handler's filesync waits for all that was logged before it, put_chars for all that was printed.
SOURCE = """
Another = os:getpid() =/= Pid,
Ordinary =
    whereis(heart) =/= undefined
    orelse lists:sort(gen_event:which_handlers(erl_signal_server))
        -- [prim_tty_sighandler] =/= [erl_signal_handler]
    orelse application:get_env(kernel, shutdown_func) =/= undefined
    orelse application:get_env(kernel, shutdown_timeout) =/= undefined
    orelse init:get_argument(shutdown_time) =/= error,
Flush = fun(Module) ->
    [catch Module:filesync(Id) || #{id := Id, module := M} <- logger:get_handler_config(),
        M =:= Module]
end,
Print = fun(Device) -> catch io:put_chars(Device, []) end,
Stop = fun(Caller) ->
    true = register(deployex_stop, self()),
    Monitor = monitor(process, Caller),
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    catch group_leader(whereis(user), self()),
    [catch application:stop(App) || {App, _, _} <- application:which_applications(infinity),
        App =/= kernel, App =/= stdlib],
    Flush(logger_disk_log_h),
    catch supervisor:terminate_child(kernel_sup, kernel_safe_sup),
    Flush(logger_std_h),
    [Print(Device) || Device <- [standard_error, user]],
    erlang:halt(0)
end,
case {whereis(deployex_stop), init:get_status()} of
    _ when Another; Ordinary -> ordinary;
    {Stopper, _} when is_pid(Stopper) -> halts;
    {_, {Inner, started}} when Inner =/= stopping ->
        Caller = self(),
        spawn(fun() -> Stop(Caller) end),
        halts;
    _ -> ordinary
end.
"""


def stop_node(target: Target, pid: int, timeout: float) -> bool:
    """Whether the node, which is the process `pid`, ends now; False: it wants SIGTERM.

    False also when another node answers there; either is as it was then. `timeout` in seconds is
    for the connection and for the answer each. Raises NodeError.
    """
    with connect(target, timeout) as node:
        return bool(node.evaluate(SOURCE, {"Pid": str(pid)}, timeout) == "halts")
