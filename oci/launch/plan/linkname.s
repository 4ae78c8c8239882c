// The assembler file lets start.go declare functions that the runtime implements.
