package jump

// Registers are RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15, RSP and RFLAGS. The
// last is not loaded.
type Registers [17]uint64

// landed is where they are kept first: no register is free to address out by.
//
//lint:ignore U1000 the assembly uses it
var landed Registers
