"""Readers of Hugging Face `config.json` files: every family's dialect is folded into one `ModelArchitecture`.

fields   checked access to a config's fields
blocks   parameter and cache counts of attention, latent attention, state-space and MLP blocks
dialect  what differs between families, as data
layers   config + dialect -> the model's layers
registry model_type -> dialect: supporting a new family is one line there
"""
