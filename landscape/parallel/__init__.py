"""Work shared by several processes, and weights sharded over them: all that other rooms need of torch.distributed.

`distributed` splits one measurement over processes that each hold the whole model (`shared_work`); `sharding` handles
models that FSDP2 cuts, so that each process holds a slice of every weight.
"""
