# Evaluated when the release is built. The port and the greeting differ from
# those of runtime.exs, so that an answer shows whether runtime.exs was applied.
import Config

config :counter,
  port: 4999,
  greeting: "hello from build time",
  behaviour: String.to_atom(System.get_env("COUNTER_BEHAVIOUR", "good"))

# What a counter logs while it stops is all wanted, and comes in one burst.
# (Elixir before 1.15 has no such limits, and no such handler.)
config :logger, :default_handler,
  config: [burst_limit_enable: false, drop_mode_qlen: 10_000, flush_qlen: 10_000]
