package plan

const sysStatx = 291
