"""
Write for a user who is given by a few choices in a JSON file, `{"pairs": [{"prompt": ..., "chosen": ..., "rejected": ...}]}`,
or by a saved profile.

```sh
python examples/generate.py --model_name_or_path runs/np_dpo_style/merged --user examples/users/formal_lists.json
```
"""

from np_trl.scripts.generate import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()
