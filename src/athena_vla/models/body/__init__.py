"""What models are made of: vision towers, language model, prompt, image preparation, tokenizer."""
