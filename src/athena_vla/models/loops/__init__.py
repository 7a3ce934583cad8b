"""The host loops of the families: prompts, pixels and the choice of actions, in numpy; torch is not needed here."""
