"""`python -m gpt_pipeline`: the `gpt-pipeline` command."""

from gpt_pipeline.cli import main

if __name__ == "__main__":
    main()
