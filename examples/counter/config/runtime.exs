# Evaluated on each boot of the release, before the application starts.
import Config

# A hot upgrade evaluates it on a running node, so it needs what a boot has
# and no more: the environment.
greeting = System.get_env("COUNTER_GREETING", "hello from runtime")

{:ok, ip} =
  System.get_env("COUNTER_IP", "127.0.0.1") |> String.to_charlist() |> :inet.parse_address()

config :counter,
  ip: ip,
  port: System.get_env("PORT", "4000") |> String.to_integer(),
  greeting: greeting,
  # This key is set nowhere else: without runtime.exs it is not there at all.
  only_runtime: greeting,
  # The release's own folder, and so its version.
  configured_by: Path.basename(__DIR__)
