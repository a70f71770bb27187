"""Work shared by several processes, and weights sharded over them: all that other rooms need of torch.distributed."""
