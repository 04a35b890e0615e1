[
  inputs: [
    "{mix,.formatter}.exs",
    "{config,lib,upgrades}/**/*.{ex,exs}",
    "phrase/**/*.{ex,exs}"
  ]
]
