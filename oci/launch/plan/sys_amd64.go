package plan

const sysStatx = 332
