defmodule Counter.Provider do
  @moduledoc "A config provider that does one of these, as the release was built to (mix.exs)."
  @behaviour Config.Provider

  @impl true
  def init(does), do: does

  @impl true
  def load(config, :lists), do: Config.Reader.merge(config, counter: [provided: "a list"])
  def load(_config, :no_list), do: :this_is_no_configuration
  def load(_config, :raises), do: raise("this provider raises, on purpose")

  # A fun has no form that a file could hold.
  def load(config, :fun),
    do: Config.Reader.merge(config, counter: [shout: fn text -> String.upcase(text) end])
end
