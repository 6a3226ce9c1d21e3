"""What compares this tree with an earlier commit, through the command and HTTP only."""
