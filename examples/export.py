"""
Export users of a policy, each given by a few choices in a JSON file (see `generate.py`) or by a saved profile.

As ordinary LoRA adapters of the base model, from a policy that was trained with `film_site` lora:

```sh
python examples/np_dpo.py --config examples/configs/np_dpo_style_lora.yaml
python examples/export.py --model_name_or_path runs/np_dpo_style_lora --form adapter \
    --users examples/users/formal_lists.json examples/users/casual_prose.json --output_dir runs/adapters
```

As ordinary models, each with the user folded into the weights, from `film_site` lora or attention:

```sh
python examples/export.py --model_name_or_path runs/np_dpo_style_lora --form model \
    --users examples/users/formal_lists.json --output_dir runs/models
```
"""

from np_trl.scripts.export import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()
