package fusestate

// The object is committed, so that building SPFS needs no clang.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.21.0 -cc clang -strip llvm-strip -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" -go-package fusestate -output-stem programs -target bpfel -type node -type open -type file_record -type device_record -type mapping_record -type place_record -type task_record -type conn_value -type others_value -no-global-types programs bpf/fusestate.c
