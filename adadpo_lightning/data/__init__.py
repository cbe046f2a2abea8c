"""From rows in files to micro-batches: schema, sources, tokenize, prepare, plan, collate, loader, datamodule."""
