"""One file a peer. Each makes a smaller network from a trained one; recovery and measurement are the same for all."""
