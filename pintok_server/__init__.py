"""The PinTok server: compiler of vocabularies, control plane and commands.

Layers, none of which imports one to its right: `_spec`, `errors` < `vocab` < `control` < `cli`.
"""
