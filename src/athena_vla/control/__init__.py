"""Stage 4: chunks become joint commands. numpy and a wire codec only: this is what the robot installs."""
