"""The Ray that work is given to: how one is begun here, and the nodes of one that runs."""
