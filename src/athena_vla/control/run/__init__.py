"""The parts of one run of the control loop: how it begins, paces, looks, plays, obeys and ends."""
