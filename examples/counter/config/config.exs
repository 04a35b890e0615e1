# Evaluated when the release is built. The port and the greeting differ from
# those of runtime.exs, so that an answer shows whether runtime.exs was applied.
import Config

config :counter,
  port: 4999,
  greeting: "hello from build time",
  behaviour: String.to_atom(System.get_env("COUNTER_BEHAVIOUR", "good"))

# What a counter logs while it stops is all wanted, and comes in one burst.
config :logger, :default_handler, config: [burst_limit_enable: false]
