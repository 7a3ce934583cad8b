"""The embedded MuJoCo simulator: the same recordings and the same Robot, without Isaac."""
