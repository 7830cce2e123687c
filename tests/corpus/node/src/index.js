const ms = require('ms');
console.log('@BUILD@', ms('2 days'), process.env.NODE_ENV, process.getuid());
