"""The demo: a small real model learns to write kinder reviews, from prompts to a comparison before and after."""
